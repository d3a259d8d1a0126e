"""What each choice of a training gives: students, targets and baselines on equal terms, several seeds each."""
