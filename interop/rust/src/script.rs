//! The cases.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::client::{CALL_TIMEOUT, Client, within};
use crate::reading::Reading;
use crate::v1::{
    DataType, EmbedInput, EmbedRequest, FinishReason, GenerateRequest, GenerateResponse, InferRequest,
    ListModelsRequest, Tensor, TensorMeta, TokenBatch, TokenizeRequest, embed_input,
};
use crate::{Outcome, check};

/// How long the server may take to notice that a caller has gone.
const NOTICE_TIME: Duration = Duration::from_millis(500);

/// google.rpc.Status, whose contract is not in the image.
#[derive(Clone, PartialEq, Message)]
struct RichStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// google.rpc.RetryInfo.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// Runs all cases and prints a line for each.
pub async fn run(client: Client) {
    report("generate", generate(&client).await);
    report("stream_generate", stream_generate(&client).await);
    report("stream_cancel", stream_cancel(&client).await);
    report("embed", embed(&client).await);
    report("infer", infer(&client).await);
    report("error_details", error_details(&client).await);
    report("deadline", deadline(&client).await);
    report("metadata", metadata(&client).await);
    report("compression", compression(&client).await);
}

fn report(case: &str, outcome: Outcome) {
    let detail = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
    println!("{}", serde_json::json!({"case": case, "ok": outcome.is_ok(), "detail": detail}));
}

/// The usual request, with an id of its own.
fn usual(tokens: u32) -> GenerateRequest {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_nanos()).unwrap_or_default();
    GenerateRequest {
        request_id: format!("tonic-{}-{now}", std::process::id()),
        prompt: Some("Alice was beginning".into()),
        max_tokens: Some(tokens),
        temperature: Some(0.0),
        ignore_eos: true,
        ..Default::default()
    }
}

async fn generated(client: &Client, tokens: u32) -> Result<GenerateResponse, Status> {
    Ok(client.llm.clone().generate(within(CALL_TIMEOUT, usual(tokens))).await?.into_inner())
}

/// A run that was started, read to some of its tokens.
async fn open(client: &Client, timeout: Duration, tokens: u32, read: usize) -> Outcome<Reading> {
    let request = usual(tokens);
    let stream = client.llm.clone().stream_generate(within(timeout, request.clone())).await?.into_inner();
    let mut reading = Reading::new(request, stream);
    reading.until(read).await?;
    Ok(reading)
}

fn joined(tokens: Option<&TokenBatch>) -> String {
    tokens.into_iter().flat_map(|batch| &batch.tokens).map(|token| token.text()).collect()
}

async fn generate(client: &Client) -> Outcome {
    let reply = generated(client, 8).await?;
    let completion = reply.usage.as_ref().map(|usage| usage.completion_tokens);
    check(completion == Some(8), || format!("{completion:?} tokens, not 8"))?;
    let [choice] = reply.choices.as_slice() else {
        return Err(format!("{} choices, not 1", reply.choices.len()).into());
    };
    check(!reply.text.is_empty() && choice.text == reply.text, || {
        format!("texts {:?} and {:?}", reply.text, choice.text)
    })?;
    let tokens = joined(choice.tokens.as_ref());
    check(tokens == reply.text, || format!("tokens {tokens:?} of {:?}", reply.text))?;
    let reason = choice.finish.as_ref().map(|finish| finish.reason());
    check(reason == Some(FinishReason::Length), || format!("finish {reason:?}"))
}

async fn stream_generate(client: &Client) -> Outcome {
    let text = generated(client, 24).await?.text;
    let mut reading = open(client, CALL_TIMEOUT, 24, 0).await?;
    let ended = reading.to_the_end().await?;
    check(ended.is_none(), || format!("it ended with {ended:?}"))?;
    reading.is_whole(24, &text)
}

async fn stream_cancel(client: &Client) -> Outcome {
    let left = open(client, CALL_TIMEOUT, 1000, 5).await?;
    let request_id = left.request.request_id.clone();
    drop(left);
    tokio::time::sleep(NOTICE_TIME).await;
    check(!client.cancel(&request_id).await?, || "it runs on, though the client has left".into())?;

    let mut stopped = open(client, CALL_TIMEOUT, 1000, 5).await?;
    check(client.cancel(&stopped.request.request_id).await?, || "the run that is read was not found".into())?;
    stopped.ends_with(Code::Cancelled).await?;
    check(!stopped.complete, || "Completed, though it was cancelled".into())
}

async fn embed(client: &Client) -> Outcome {
    let inputs = ["The Queen of Hearts", "she made some tarts"]
        .map(|text| EmbedInput { input: Some(embed_input::Input::Text(text.into())) });
    let request = EmbedRequest { inputs: inputs.into(), normalize: Some(true), ..Default::default() };
    let reply = client.llm.clone().embed(within(CALL_TIMEOUT, request)).await?.into_inner();
    let [first, second] = reply.embeddings.as_slice() else {
        return Err(format!("{} tensors, not 2", reply.embeddings.len()).into());
    };
    for vector in [first, second] {
        let meta = vector.meta.as_ref().ok_or("a tensor without meta")?;
        check(meta.shape == [256] && meta.dtype() == DataType::Float32, || format!("{meta:?}"))?;
        let data = &vector.data;
        check(data.len() == 1024, || format!("{} bytes, not 1024", data.len()))?;
        let squares = data.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        let length = squares.map(|element| f64::from(element).powi(2)).sum::<f64>().sqrt();
        check((length - 1.0).abs() < 1e-4, || format!("length {length}, not 1"))?;
    }
    check(first.data != second.data, || "both vectors are the same".into())?;
    check(reply.usage.is_some_and(|usage| usage.prompt_tokens > 0), || "no prompt tokens counted".into())
}

async fn infer(client: &Client) -> Outcome {
    let bits = [1.5f32.to_bits(), 0x8000_0000, 0x7f80_0000, 0x7fc0_0001, 1, 3e38f32.to_bits()];
    let data: Vec<u8> = bits.iter().flat_map(|element| element.to_le_bytes()).collect();
    let meta = TensorMeta {
        shape: vec![2, 3],
        dtype: DataType::Float32.into(),
        name: Some("x".into()),
        ..Default::default()
    };
    let request = InferRequest {
        model: "identity".into(),
        inputs: vec![Tensor { meta: Some(meta), data: data.clone(), lane: None }],
        ..Default::default()
    };
    let reply = client.tensors.clone().infer(within(CALL_TIMEOUT, request)).await?.into_inner();
    let [output] = reply.outputs.as_slice() else {
        return Err(format!("{} outputs, not 1", reply.outputs.len()).into());
    };
    let meta = output.meta.as_ref().ok_or("an output without meta")?;
    check(meta.name() == "x" && meta.shape == [2, 3] && meta.dtype() == DataType::Float32, || format!("{meta:?}"))?;
    check(output.data == data, || format!("elements {:?}, not {data:?}", output.data))
}

async fn error_details(client: &Client) -> Outcome {
    let mut live = Vec::new();
    for _ in 0..3 {
        live.push(open(client, CALL_TIMEOUT, 1000, 1).await?);
    }
    let refused = match open(client, CALL_TIMEOUT, 1000, 1).await {
        Ok(_) => return Err("the fourth stream was not refused".into()),
        Err(failure) => *failure.downcast::<Status>()?,
    };
    refusal(&refused)?;
    for reading in &mut live {
        check(client.cancel(&reading.request.request_id).await?, || "a live run was not found".into())?;
        reading.ends_with(Code::Cancelled).await?;
    }
    Ok(())
}

fn refusal(status: &Status) -> Outcome {
    check(status.code() == Code::ResourceExhausted, || format!("{status:?}"))?;
    check(status.message().contains("live_streams"), || format!("message {:?}", status.message()))?;
    let details = RichStatus::decode(status.details())?.details;
    let [detail] = details.as_slice() else {
        return Err(format!("{} details, not 1", details.len()).into());
    };
    check(detail.type_url.ends_with("/google.rpc.RetryInfo"), || detail.type_url.clone())?;
    let delay = RetryInfo::decode(detail.value.as_slice())?.retry_delay;
    check(delay == Some(prost_types::Duration { seconds: 1, nanos: 0 }), || format!("retry delay {delay:?}, not 1 s"))?;
    has(status.metadata(), "retry-after", "1")
}

async fn deadline(client: &Client) -> Outcome {
    let began = Instant::now();
    let mut reading = open(client, Duration::from_millis(400), 1000, 1).await?;
    reading.ends_with(Code::DeadlineExceeded).await?;
    check(began.elapsed() < Duration::from_secs(3), || format!("it took {:?}", began.elapsed()))?;
    tokio::time::sleep(NOTICE_TIME).await;
    check(!client.cancel(&reading.request.request_id).await?, || "it runs on after its deadline".into())
}

async fn metadata(client: &Client) -> Outcome {
    let refused = client.anonymous.clone().list_models(within(CALL_TIMEOUT, ListModelsRequest::default())).await;
    let code = refused.err().map(|status| status.code());
    check(code == Some(Code::Unauthenticated), || format!("{code:?} without a key"))?;
    let models = client.llm.clone().list_models(within(CALL_TIMEOUT, ListModelsRequest::default())).await?.into_inner();
    let names: Vec<_> = models.models.iter().map(|model| model.name.as_str()).collect();
    check(names == ["ngram-alice"], || format!("models {names:?}"))?;
    let reply = client.llm.clone().generate(within(CALL_TIMEOUT, usual(4))).await?;
    has(reply.metadata(), "interop-note", "4 tokens")
}

async fn compression(client: &Client) -> Outcome {
    let text = "Alice was beginning to get very tired. ".repeat(100);
    let request = TokenizeRequest { text: text.clone(), ..Default::default() };
    let reply = client.gzip().tokenize(within(CALL_TIMEOUT, request)).await?;
    has(reply.metadata(), "grpc-encoding", "gzip")?;
    let reply = reply.into_inner();
    check(reply.context_length == 2048, || format!("context_length {}", reply.context_length))?;
    check(joined(reply.tokens.as_ref()) == text, || "the tokens' texts are not the text".into())
}

fn has(metadata: &MetadataMap, name: &str, value: &str) -> Outcome {
    let told = metadata.get(name).and_then(|told| told.to_str().ok());
    check(told == Some(value), || format!("{name} is {told:?} in {metadata:?}"))
}
