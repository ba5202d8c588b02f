"""What every command shares: its help, its words, its errors."""
