"""How the demo checkpoints were made. Run from ``examples/demo`` as ``python -m recipe.<stage>``.

    grammar -> synthesize -> *.wav + manifest -> tokenizer -> tokenizer.model
                                     |                              |
                                     `------------> train <---------'  <- *.yaml, transducer_loss
                                                      | *.nemo
                                     clips ---> decode_reference ---> manifest.json

Needs NeMo (``nemotrt[nemo]``), and espeak-ng and flite for ``synthesize``. Nothing in nemotrt imports it.
"""
