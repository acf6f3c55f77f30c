"""Fine-tuning: plain, stacked and differentially private."""
