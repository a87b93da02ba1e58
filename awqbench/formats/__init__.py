"""What lies on disk: model folders, packed layouts, recognition."""
