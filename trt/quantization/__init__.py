"""Products of matrices in eight bits: QuantizeLinear and DequantizeLinear written into the graphs of a bundle."""
