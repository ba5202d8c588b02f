"""result.json, the report's page, its pictures and its viewer."""
