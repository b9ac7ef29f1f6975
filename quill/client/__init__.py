"""Clients of any gRPC or Connect server: QuillClient (blocking) and AsyncQuillClient (asyncio)."""
