"""Images: headers, archives of tiles, cutouts and composites."""
