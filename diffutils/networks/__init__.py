"""What is learned: an MLP for points, a U-Net for images, and the embedding that tells both the time."""
