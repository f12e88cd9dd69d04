"""A program: restore a checkpoint with NeMo, and export its modules with the inputs and outputs of the bundle contract.

    python run_nemo_modules.py REQUEST.json

    import NeMo -> restore -> for each component: wrap -> trace -> NAME/NAME.onnx, and a sample of what the module says

It runs in the interpreter that has NeMo, which need not have nemotrt, so it imports nothing of nemotrt. The request
says which components with which tensors; ``stage.txt`` says how far it came, ``report.json`` what was done.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

# Stages, in this order; then one for each component.
IMPORT, DEVICE, RESTORE = "import NeMo", "use the device", "restore the checkpoint"

# Sizes of the axes: those that are traced, and others that the same graph is tried with.
TRACED = {"batch": 2, "frames": 161, "joint_frames": 5, "tokens": 3}
TRIED = {"batch": 3, "frames": 403, "joint_frames": 7, "tokens": 2}


def main(request_path: str) -> None:
    """Write the components into the request's folder; whatever NeMo or torch raises ends the program."""
    # The folder of this file comes first on the path, and its modules have common names.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    folder = Path(request["folder"])
    enter(folder, IMPORT)
    import nemo
    import torch
    from nemo.collections.asr.models import ASRModel

    enter(folder, DEVICE)
    torch.zeros(1, device=request["device"])
    enter(folder, RESTORE)
    model = ASRModel.restore_from(request["checkpoint"], map_location=torch.device(request["device"])).eval()
    if request["attention_context"] is not None:
        model.encoder.set_default_att_context_size(request["attention_context"])
    enter(folder, "prepare the trace")
    with torch.inference_mode(), patched(model) as patches:
        for name, tensors in request["components"].items():
            enter(folder, f"export {name}")
            module = component(model, name)
            save(module, tensors, request, folder / name / f"{name}.onnx")
    versions = {"nemo_toolkit": nemo.__version__, "torch": str(torch.__version__)}
    report = {"versions": versions, "patches": patches}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def enter(folder: Path, stage: str) -> None:
    """Leave word of what comes next: a process that is killed says nothing."""
    (folder / "stage.txt").write_text(stage, encoding="utf-8")


@contextmanager
def patched(model: Any) -> Iterator[list[str]]:
    """What a trace needs other than inference has it; everything is as it was at the end. Gives what was changed."""
    import torch
    from nemo.core.classes.common import is_typecheck_enabled, typecheck

    applied: list[str] = []
    with ExitStack() as stack:

        def replace(owner: Any, attribute: str, value: Any, reason: str) -> None:
            stack.callback(setattr, owner, attribute, getattr(owner, attribute))
            setattr(owner, attribute, value)
            kind = owner if isinstance(owner, type) else type(owner)
            applied.append(f"{kind.__name__}.{attribute}: {reason}")

        if is_typecheck_enabled():
            stack.callback(typecheck.set_typecheck_enabled, enabled=True)
            typecheck.set_typecheck_enabled(enabled=False)
            applied.append("typecheck: off, it attaches Python objects to tensors")
        replace(torch.nn.RNNBase, "flatten_parameters", lambda _: None, "left out, it moves weights")
        if getattr(model, "joint", None) is not None and model.joint.log_softmax is not False:
            replace(model.joint, "log_softmax", False, "off, the contract has raw logits")
        for module in model.encoder.modules():
            if getattr(module, "use_pytorch_sdpa", False):
                replace(module, "use_pytorch_sdpa", False, "off, the fused attention writes into its arguments")
        yield list(dict.fromkeys(applied))


def component(model: Any, name: str) -> Any:
    """One component of the contract as a torch module."""
    import torch

    parts, call = COMPONENTS[name](model)

    class Component(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(parts)

        def forward(self, *inputs: Any) -> Any:
            return call(*inputs)

    return Component().eval()


def encoder(model: Any) -> tuple[Sequence[Any], Callable[..., Any]]:
    """audio_signal [B,F,T], length [B] -> encoder_output [B,D,T'], encoded_lengths [B]."""

    def call(audio_signal: Any, length: Any) -> Any:
        import torch

        # NeMo masks by multiplying, and what the contract allows behind a row's end may be NaN.
        frames = torch.arange(audio_signal.shape[2], device=audio_signal.device)
        padding = (frames >= length.unsqueeze(1)).unsqueeze(1)
        encoded, lengths = model.encoder.forward_for_export(audio_signal.masked_fill(padding, 0.0), length)[:2]
        return encoded, lengths.to(torch.int64)

    return [model.encoder], call


def ctc(model: Any) -> tuple[Sequence[Any], Callable[..., Any]]:
    """audio_signal [B,F,T], length [B] -> logprobs [B,T',V+1], encoded_lengths [B]."""
    head = getattr(model, "ctc_decoder", None) or model.decoder
    _, encode = encoder(model)

    def call(audio_signal: Any, length: Any) -> Any:
        encoded, lengths = encode(audio_signal, length)
        return head(encoder_output=encoded), lengths

    return [model.encoder, head], call


def predictor(model: Any) -> tuple[Sequence[Any], Callable[..., Any]]:
    """y [B,U], h, c [L,B,H] -> g [B,H,U], h_out, c_out."""

    def call(y: Any, h: Any, c: Any) -> Any:
        g, (h_out, c_out) = model.decoder.predict(y, state=(h, c), add_sos=False)
        return g.transpose(1, 2), h_out, c_out

    return [model.decoder], call


def joint(model: Any) -> tuple[Sequence[Any], Callable[..., Any]]:
    """encoder_output [B,D,T], predictor_output [B,H,U] -> joint_output [B,T,U,W], raw logits."""

    def call(encoder_output: Any, predictor_output: Any) -> Any:
        return model.joint.joint(encoder_output.transpose(1, 2), predictor_output.transpose(1, 2))

    return [model.joint], call


def decoder_joint(model: Any) -> tuple[Sequence[Any], Callable[..., Any]]:
    """Predictor and joint in one, with 32-bit tokens; ``target_length`` goes through."""
    _, predict = predictor(model)
    _, join = joint(model)

    def call(encoder_outputs: Any, targets: Any, target_length: Any, h: Any, c: Any) -> Any:
        g, h_out, c_out = predict(targets.long(), h, c)
        return join(encoder_outputs, g), target_length + 0, h_out, c_out

    return [model.decoder, model.joint], call


COMPONENTS: dict[str, Callable[[Any], tuple[Sequence[Any], Callable[..., Any]]]] = {
    "encoder": encoder,
    "ctc": ctc,
    "predictor": predictor,
    "joint": joint,
    "decoder_joint": decoder_joint,
}


def save(module: Any, tensors: dict[str, list[dict[str, Any]]], request: dict[str, Any], path: Path) -> None:
    """Write the graph of ``module``, and as ``.npz`` beside it what the module says to inputs of other sizes."""
    import numpy as np
    import torch

    path.parent.mkdir()
    inputs, outputs = tensors["inputs"], tensors["outputs"]
    names = [one["name"] for one in inputs], [one["name"] for one in outputs]
    axes = {one["name"]: {i: n for i, n in enumerate(one["shape"]) if isinstance(n, str)} for one in inputs + outputs}
    # torch >= 2.9 exports through another exporter unless told: the one that NeMo's models are made for is named.
    named: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(
        module,
        tuple(example(inputs, TRACED, request)),
        str(path),
        input_names=names[0],
        output_names=names[1],
        dynamic_axes=axes,
        opset_version=request["opset"],
        **named,
    )
    tried = example(inputs, TRIED, request)
    said = module(*tried)
    arrays = [tensor.cpu().numpy() for tensor in (*tried, *(said if isinstance(said, tuple) else (said,)))]
    np.savez(path.with_suffix(".npz"), **{name: arrays[i] for i, name in enumerate(names[0] + names[1])})


def example(inputs: list[dict[str, Any]], sizes: dict[str, int], request: dict[str, Any]) -> list[Any]:
    """Tensors for ``inputs``: noise, the first two tokens, and rows of different lengths."""
    import torch

    generator = torch.Generator().manual_seed(0)
    tensors = []
    for one in inputs:
        shape = [sizes[n] if isinstance(n, str) else n for n in one["shape"]]
        if one["name"] in ("length", "target_length"):
            longest = sizes["frames" if one["name"] == "length" else "tokens"]
            tensor = torch.tensor([max(1, longest - 37 * row) for row in range(shape[0])])
        elif one["dtype"].startswith("int"):
            tensor = torch.randint(0, 2, shape, generator=generator)
        else:
            tensor = torch.randn(shape, generator=generator)
        tensors.append(tensor.to(device=request["device"], dtype=getattr(torch, one["dtype"])))
    return tensors


if __name__ == "__main__":
    main(*sys.argv[1:])
