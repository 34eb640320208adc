"""Pictures with labels: where they come from, how they are split, checked, prepared and augmented."""
