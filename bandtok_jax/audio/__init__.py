"""Sound without learned parameters: reading, writing, resampling, spectra, loudness."""
