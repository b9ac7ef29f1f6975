//! The script of calls of interop/README.md by tonic, over gRPC.

mod client;
mod reading;
mod script;

pub mod v1 {
    //! The contract, generated.
    #![allow(clippy::all)]
    tonic::include_proto!("inference.v1");
}

/// Why a case is red.
pub type Failure = Box<dyn std::error::Error>;

/// What becomes of a case, and of each of its checks.
pub type Outcome<T = ()> = Result<T, Failure>;

/// Fails unless it holds.
pub fn check(holds: bool, detail: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(detail().into()) }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let given: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        given
            .windows(2)
            .find(|pair| pair[0] == name)
            .map(|pair| pair[1].clone())
            .ok_or_else(|| format!("{name} is missing"))
    };
    let client = client::Client::connect(&value("--grpc-address")?, &value("--key")?)?;
    script::run(client).await;
    Ok(())
}
