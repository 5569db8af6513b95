"""Who writes the pairs: paid calls under limits, quality gates and a judge. No torch, no run."""
