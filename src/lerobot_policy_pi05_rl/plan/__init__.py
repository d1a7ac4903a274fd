"""What a training step costs, counted on the meta device: no weight exists, no step is computed."""
