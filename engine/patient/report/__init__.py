"""What the reconstruction hands over: pictures, landmarks and the patient's page."""
