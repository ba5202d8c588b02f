"""Runs side by side: tables, statistics, page and view."""
