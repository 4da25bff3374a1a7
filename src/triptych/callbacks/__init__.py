"""Lightning callbacks: averaged weights, early stopping, gradient norms, users' metrics."""
