"""What a style is and what a contrastive pair is: files, hashes, datasets and near-repeats."""
