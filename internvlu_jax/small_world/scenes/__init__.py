"""Pictures of the small world: what exists (`world`), what one picture shows (`scene`), how it is drawn (`render`)."""
