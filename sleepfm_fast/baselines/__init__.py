"""What the embeddings are compared with: hand-made features and a network trained on the scoring."""
