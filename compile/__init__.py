"""The workshop: data, fit, export, quantise, prove, bundle."""
