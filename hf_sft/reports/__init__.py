"""What a run leaves to be read: report.json, report.html with its plots, the model card."""
