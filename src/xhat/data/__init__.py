"""Data: images in memory as uint8, from the embedded MNIST, folders and files."""
