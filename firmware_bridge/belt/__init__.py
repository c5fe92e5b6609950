"""The belt simulator: knows the truth, serves the controller's pins and the camera, and judges what the gate did."""
