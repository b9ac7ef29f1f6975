"""What every call passes before anything of the user's runs: credentials, the right to call, quotas."""

from __future__ import annotations

import grpc

from quill.errors import RpcError
from quill.limits import Quota
from quill.principal import Principal, current_principal, token_meter
from quill.server.auth import Authenticator, is_health
from quill.server.certificates import AuthContext
from quill.server.quota import Accounts, current_account


class Admission:
    """Lets calls in, and tells those inside who calls.

    Args:
        authenticator: Who calls, and whether they may.
        quota: What each principal may use; None for no bounds.
    """

    def __init__(self, authenticator: Authenticator, quota: Quota | None) -> None:
        self._authenticator = authenticator
        self._accounts = None if quota is None else Accounts(quota)

    @property
    def reads_certificates(self) -> bool:
        """Whether the connection decides, too."""
        return self._authenticator.reads_certificates

    def allows(self, details: grpc.HandlerCallDetails, peer: AuthContext) -> bool:
        """Whether a call would be let in, quotas aside. Counts nothing."""
        try:
            self._authenticator.authenticate(details, peer)
        except RpcError:
            return False
        return True

    def admit(self, details: grpc.HandlerCallDetails, peer: AuthContext) -> Principal:
        """Let a call in, in the task that will run it.

        Raises:
            Unauthenticated: There are no good credentials.
            PermissionDenied: They are not for this method.
            ResourceExhausted: A quota is used up.
        """
        principal = self._authenticator.authenticate(details, peer)
        if self._accounts is not None:
            self._count(self._accounts, principal, details)
        current_principal.set(principal)
        return principal

    @staticmethod
    def _count(accounts: Accounts, principal: Principal, details: grpc.HandlerCallDetails) -> None:
        if is_health(details.method):
            current_account.set(None)
            return
        account = accounts.of(principal.name)
        account.take_request()
        current_account.set(account)
        token_meter.set(account.use_tokens)
