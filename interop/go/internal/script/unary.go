package script

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strings"

	"google.golang.org/grpc/codes"

	v1 "quill.example/interop/gen/inference/v1"
)

func (s *Script) generate(ctx context.Context) error {
	reply, err := within(ctx, s.client.Generate, nil, usual(8))
	if err != nil {
		return err
	}
	if len(reply.Choices) != 1 {
		return fmt.Errorf("%d choices, not 1", len(reply.Choices))
	}
	choice := reply.Choices[0]
	return first(
		check(reply.Usage.GetCompletionTokens() == 8, "%d tokens, not 8", reply.Usage.GetCompletionTokens()),
		check(reply.Text != "" && choice.Text == reply.Text, "texts %q and %q", reply.Text, choice.Text),
		check(joined(choice.Tokens) == reply.Text, "tokens %q of %q", joined(choice.Tokens), reply.Text),
		check(choice.Finish.GetReason() == v1.FinishReason_FINISH_REASON_LENGTH, "finish %v", choice.Finish),
	)
}

func joined(tokens *v1.TokenBatch) string {
	var text strings.Builder
	for _, token := range tokens.GetTokens() {
		text.WriteString(token.GetText())
	}
	return text.String()
}

func (s *Script) embed(ctx context.Context) error {
	normalize := true
	request := &v1.EmbedRequest{Normalize: &normalize}
	for _, text := range []string{"The Queen of Hearts", "she made some tarts"} {
		request.Inputs = append(request.Inputs, &v1.EmbedInput{Input: &v1.EmbedInput_Text{Text: text}})
	}
	reply, err := within(ctx, s.client.Embed, nil, request)
	if err != nil {
		return err
	}
	if len(reply.Embeddings) != 2 {
		return fmt.Errorf("%d tensors, not 2", len(reply.Embeddings))
	}
	for _, tensor := range reply.Embeddings {
		shape := tensor.Meta.GetShape()
		if len(shape) != 1 || shape[0] != 256 || len(tensor.Data) != 1024 {
			return fmt.Errorf("shape %v with %d bytes", shape, len(tensor.Data))
		}
		if tensor.Meta.Dtype != v1.DataType_DATA_TYPE_FLOAT32 {
			return fmt.Errorf("dtype %v", tensor.Meta.Dtype)
		}
		if length := norm(tensor.Data); math.Abs(length-1) > 1e-4 {
			return fmt.Errorf("length %v, not 1", length)
		}
	}
	return first(
		check(!bytes.Equal(reply.Embeddings[0].Data, reply.Embeddings[1].Data), "both vectors are the same"),
		check(reply.Usage.GetPromptTokens() > 0, "no prompt tokens counted"),
	)
}

// norm is the Euclidean length of little-endian float32.
func norm(data []byte) float64 {
	sum := 0.0
	for at := 0; at < len(data); at += 4 {
		element := float64(math.Float32frombits(binary.LittleEndian.Uint32(data[at:])))
		sum += element * element
	}
	return math.Sqrt(sum)
}

func (s *Script) infer(ctx context.Context) error {
	var data []byte
	for _, bits := range []uint32{
		math.Float32bits(1.5), 0x80000000, 0x7f800000, 0x7fc00001, 1, math.Float32bits(3e38),
	} {
		data = binary.LittleEndian.AppendUint32(data, bits)
	}
	name := "x"
	meta := &v1.TensorMeta{Shape: []int64{2, 3}, Dtype: v1.DataType_DATA_TYPE_FLOAT32, Name: &name}
	reply, err := within(ctx, s.client.Infer, nil, &v1.InferRequest{
		Model:  "identity",
		Inputs: []*v1.Tensor{{Meta: meta, Data: data}},
	})
	if err != nil {
		return err
	}
	if len(reply.Outputs) != 1 {
		return fmt.Errorf("%d outputs, not 1", len(reply.Outputs))
	}
	got := reply.Outputs[0]
	shape := got.Meta.GetShape()
	return first(
		check(got.Meta.GetName() == name, "output %q, not %q", got.Meta.GetName(), name),
		check(len(shape) == 2 && shape[0] == 2 && shape[1] == 3, "shape %v", shape),
		check(got.Meta.GetDtype() == meta.Dtype, "dtype %v", got.Meta.GetDtype()),
		check(bytes.Equal(got.Data, data), "elements %x, not %x", got.Data, data),
	)
}

func (s *Script) metadata(ctx context.Context) error {
	_, err := within(ctx, s.client.ListModels, &Call{Anonymous: true}, &v1.ListModelsRequest{})
	if err := s.code(err, codes.Unauthenticated); err != nil {
		return err
	}
	// HTTP's own header: gRPC's refusals have trailers only.
	if metadata := s.client.Status(err).Metadata; s.protocol != "grpc" && len(metadata["www-authenticate"]) != 1 {
		return fmt.Errorf("no www-authenticate in %v", metadata)
	}
	models, err := within(ctx, s.client.ListModels, nil, &v1.ListModelsRequest{})
	if err != nil {
		return err
	}
	if len(models.Models) != 1 || models.Models[0].Name != "ngram-alice" {
		return fmt.Errorf("models %v", models.Models)
	}
	call := &Call{}
	if _, err := within(ctx, s.client.Generate, call, usual(4)); err != nil {
		return err
	}
	note := call.Metadata["interop-note"]
	return check(len(note) == 1 && note[0] == "4 tokens", "interop-note %q in %v", note, call.Metadata)
}

func (s *Script) compression(ctx context.Context) error {
	text := strings.Repeat("Alice was beginning to get very tired. ", 100)
	call := &Call{Gzip: true}
	reply, err := within(ctx, s.client.Tokenize, call, &v1.TokenizeRequest{Text: text})
	if err != nil {
		return err
	}
	return first(
		check(reply.ContextLength == 2048, "context_length %d", reply.ContextLength),
		check(joined(reply.Tokens) == text, "the tokens' texts are not the text"),
		check(call.RequestEncoding == "gzip", "the request was sent as %q", call.RequestEncoding),
		check(call.ReplyEncoding == "gzip", "the reply came as %q", call.ReplyEncoding),
	)
}
