"""What the Helm chart shares with the rest of the repository."""
