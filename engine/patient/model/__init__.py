"""From labels or surfaces to a PatientModel."""
