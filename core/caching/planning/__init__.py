"""What a build would take, told before anything is loaded."""
