"""An inspection as lines for people."""

from __future__ import annotations

from collections.abc import Iterator

from nemotrt.bench import quantities
from nemotrt.bench.inspection import EngineFacts, Inspection
from nemotrt.trt.inspection.graph_facts import GraphFacts, TensorFacts

_OPS_SHOWN = 12


def inspection_lines(inspection: Inspection) -> Iterator[str]:
    """What the command prints."""
    meta = inspection.bundle
    if meta is not None:
        yield f"{inspection.path}: {meta.name}, {meta.family}, {meta.precision}, {len(meta.components)} components"
        encoder = meta.encoder
        yield f"  encoder     {encoder.layers} layers of {encoder.d_model}, {encoder.heads} heads"
        yield f"  vocabulary  {meta.vocabulary_size} pieces, {meta.tokenizer}"
        yield f"  checkpoint  sha256 {meta.checkpoint_sha256}"
    if inspection.engine is not None:
        yield f"{inspection.path}: engine"
        yield from _engine_lines(inspection.engine)
    for name, facts in inspection.graphs.items():
        yield f"{name}: {facts.path.name}"
        yield from _graph_lines(facts)
        yield from _limit_lines(*inspection.position_limits(name))


def tensor_text(tensor: TensorFacts) -> str:
    """``audio_signal float32[batch, 80, frames]``."""
    axes = "" if tensor.shape is None else ", ".join("?" if axis is None else str(axis) for axis in tensor.shape)
    return f"{tensor.name} {tensor.dtype or '?'}[{axes}]"


def _graph_lines(facts: GraphFacts) -> Iterator[str]:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in facts.opsets.items())
    yield f"  made by     {facts.producer or 'unknown'}; opset {opsets}; IR {facts.ir_version}"
    for label, tensors in (("inputs", facts.inputs), ("outputs", facts.outputs)):
        yield f"  {label:<11} {', '.join(map(tensor_text, tensors))}"
    weights = f"{quantities.size(facts.weight_bytes)} of weights, {facts.parameters:,} parameters"
    yield f"  holds       {facts.nodes:,} nodes, {weights}"
    shown = list(facts.ops.items())[:_OPS_SHOWN]
    more = len(facts.ops) - len(shown)
    yield f"  operators   {', '.join(f'{op} {count}' for op, count in shown)}{f', {more} more kinds' if more else ''}"
    foreign = {domain: count for domain, count in facts.domains.items() if domain}
    if foreign:
        yield f"  foreign     {', '.join(f'{domain} {count}' for domain, count in foreign.items())}"
    for share in facts.dtypes:
        size = quantities.size(share.size_bytes)
        yield f"  weights     {share.dtype or '?'}: {size} in {quantities.counted(share.tensors, 'tensor')}"
    for row in facts.products:
        kind = f"{row.weight_dtype} weights" if row.weight_dtype else "no weight"
        yield f"  products    {row.op} with {kind}: {row.nodes}, {quantities.size(row.weight_bytes)}"
    for weight in facts.largest:
        yield f"  largest     {quantities.size(weight.size_bytes):>8}  {weight.name} {weight.dtype}{list(weight.shape)}"
    for file in facts.data_files:
        size = "missing" if file.size_bytes is None else quantities.size(file.size_bytes)
        yield f"  data        {file.name}: {size}, {quantities.size(file.used_bytes)} used"
    for key, value in facts.metadata.items():
        yield f"  metadata    {key} = {value}"


def _limit_lines(promised: int | None, found: int | None) -> Iterator[str]:
    if found is None:
        return
    agreed = "" if promised is None else f", {promised:,} by the contract"
    yield f"  positions   inputs of up to {found:,} encoder frames{agreed}"


def _engine_lines(engine: EngineFacts) -> Iterator[str]:
    manifest, state = engine.manifest, engine.manifest.verification
    seconds = quantities.duration(manifest.build_seconds)
    targets = manifest.gpu or ", ".join(manifest.compute_capabilities) or "the default GPUs of the library"
    yield f"  component   {manifest.component} of {manifest.family}, {manifest.precision}"
    yield f"  built       {manifest.runtime} {manifest.runtime_version} in {seconds}"
    yield f"  for         {targets}"
    yield f"  size        {quantities.size(manifest.size_bytes)}, {manifest.layers} layers before fusion"
    yield f"  state       {state.state}{f': {state.reason}' if state.reason else ''}"
    for number, ranges in enumerate(manifest.ranges):
        axes = (f"{axis} {r.min}..{r.max}, best at {r.opt}" for axis, r in ranges.items())
        yield f"  profile {number}   {'; '.join(axes)}"
    for label, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        tensors = (tensor_text(TensorFacts(spec.name, spec.dtype, spec.shape)) for spec in specs)
        yield f"  {label:<11} {', '.join(tensors)}"
    for warning in manifest.warnings:
        yield f"  warning     {warning}"
    if engine.layers is None:
        yield f"  layers      not available: {engine.reason}"
    for layer in engine.layers or ():
        yield f"  layer       {layer}"
