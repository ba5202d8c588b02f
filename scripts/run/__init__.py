"""One run: its folder, its design stage, its check, and what it hands over."""
