"""Programs and configuration for those who run and measure a mesh."""
