"""What later chunks see of earlier ones."""
