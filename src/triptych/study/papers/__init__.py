"""Published claims, as their files state them and a sweep records them before its first run."""
