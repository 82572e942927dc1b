"""Reader of the MindEye2 release: NSD's betas within nsdgeneral, its trials as webdatasets, images at 224 pixels."""
