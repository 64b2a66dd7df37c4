"""Pure functions of named tensors: log-probabilities, KL, advantages, the loss."""
