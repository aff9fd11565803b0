"""What a training run would take, told before anything is loaded."""
