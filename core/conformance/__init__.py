"""What every objective and weighting must keep to, as checks that a plugin's own tests can run."""
