"""What lies in a folder or an archive, file by file: images, captions, metadata, and the samples they make."""
