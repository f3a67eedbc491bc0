"""Clean data: held-out tasks kept out of training, secrets and personal data replaced, licences carried along, cards written."""
