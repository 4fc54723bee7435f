"""What makes a registered version a release: its seal, its papers, its parity, the gate. No MLflow here."""
