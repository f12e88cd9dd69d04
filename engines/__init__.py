"""Everything that runs a bundle or an engine.

    audio file -> Waveform -> preprocessor -> encoder -> greedy decoding -> Hypothesis -> text

One module a step; ``transcriber`` puts them together over any :class:`~nemotrt.engines.runner.Runner`.
Nothing is imported here: a caller that only reads manifests does not load ONNX Runtime.
"""
