"""tunesmith: from a team's data to a released fine-tune, orchestrated by MLflow."""
