"""Calls as gRPC has them: services, interceptor, tokens, TLS."""
