"""Lightning callbacks: averaged weights, progress, samples."""
