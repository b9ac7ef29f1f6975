//! The generated clients of one server, with the caller's key and without.

use std::time::Duration;

use tonic::codec::CompressionEncoding;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::v1::llm_service_client::LlmServiceClient;
use crate::v1::tensor_service_client::TensorServiceClient;
use crate::{Outcome, v1};

/// How long a call may take, unless a case says otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends the key with every call.
#[derive(Clone)]
pub struct WithKey(MetadataValue<Ascii>);

impl Interceptor for WithKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Clients of one server.
#[derive(Clone)]
pub struct Client {
    pub llm: LlmServiceClient<InterceptedService<Channel, WithKey>>,
    pub tensors: TensorServiceClient<InterceptedService<Channel, WithKey>>,
    pub anonymous: LlmServiceClient<Channel>,
}

impl Client {
    /// Clients of HOST:PORT; the connection is made with the first call.
    pub fn connect(address: &str, key: &str) -> Outcome<Client> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
        let with_key = WithKey(format!("Bearer {key}").parse()?);
        Ok(Client {
            llm: LlmServiceClient::with_interceptor(channel.clone(), with_key.clone()),
            tensors: TensorServiceClient::with_interceptor(channel.clone(), with_key),
            anonymous: LlmServiceClient::new(channel),
        })
    }

    /// The client whose requests are in gzip, and that takes replies in gzip.
    pub fn gzip(&self) -> LlmServiceClient<InterceptedService<Channel, WithKey>> {
        let gzip = CompressionEncoding::Gzip;
        self.llm.clone().send_compressed(gzip).accept_compressed(gzip)
    }

    /// Whether a live run of this id was there to be cancelled.
    pub async fn cancel(&self, request_id: &str) -> Outcome<bool> {
        let request = v1::CancelGenerateRequest { request_id: request_id.into(), ..Default::default() };
        Ok(self.llm.clone().cancel_generate(within(CALL_TIMEOUT, request)).await?.into_inner().found)
    }
}

/// A request with a deadline.
pub fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}
