"""What the VACE branch is given: reference images, control video and masks as a context (vace.md 3 to 5)."""
