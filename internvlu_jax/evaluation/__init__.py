"""What benchmarks share: shares and means with their intervals (`scores`), and how each counts (`rules`)."""
