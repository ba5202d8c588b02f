"""What labels mean, whether they hold and where they are wrong."""
