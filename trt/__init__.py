"""Bundle in, typed graphs and built engines out. No torch and no NeMo; TensorRT only where it is called."""
