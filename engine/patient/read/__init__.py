"""From files to images, label maps and surfaces."""
